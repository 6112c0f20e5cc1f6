"""Chat templates do what their authors meant, and no harm."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from ferrum_models.chat import ChatTemplate

CHATML = (
    "{%- if tools %}{{ '<|im_start|>tools\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}"
    "{%- for message in messages %}"
    "{%- if loop.first and message.role != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{{- '<|im_start|>' + message.role + '\n' + message['content'] | trim + '<|im_end|>' + '\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{% for message in rest %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + (system if loop.first else '') + message['content']"
    " + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
NAMESPACE = (
    "{%- set ns = namespace(count=0, last=none) %}"
    "{%- for m in messages %}{%- if m.role == 'skip' %}{%- continue %}{%- endif %}"
    "{%- set ns.count = ns.count + 1 %}{%- set ns.last = m %}{%- endfor %}"
    "{{- ns.count }} of {{ messages | length }}{{ ', ' ~ ns.last.content if ns.last }}"
    "\n    {% if add_generation_prompt %}\n    go\n    {% endif %}\n"
)
MACRO = (
    "{% macro turn(m, depth) %}[{{ depth }}:{{ m.role }}|{{ m.content | replace('\n', ' ') }}]{% endmacro %}"
    "{% for m in messages | reverse %}{{ turn(m, loop.revindex) }}{% if not loop.last %},{% endif %}{% endfor %}"
)
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

texts = st.text(st.characters(codec="utf-8"), max_size=12)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "skip"]), "content": texts}),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("source", [CHATML, LLAMA2, NAMESPACE, MACRO], ids=["chatml", "llama2", "namespace", "macro"])
@given(chat=messages, prompt=st.booleans())
def test_prompts_are_those_of_transformers(source: str, chat: list[dict[str, str]], prompt: bool) -> None:
    template = ChatTemplate(source, SPECIAL)
    try:
        expected = render_jinja_template(
            conversations=[chat], chat_template=source, add_generation_prompt=prompt, **SPECIAL
        )[0][0]
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "jinja2":
            raise
        with pytest.raises(ValueError, match="roles must alternate"):
            template(chat, add_generation_prompt=prompt)
        return
    assert template(chat, add_generation_prompt=prompt) == expected


def test_tools_are_written_as_readable_json() -> None:
    tool = {"name": "größe", "arguments": {"a": "<b>"}}
    text = ChatTemplate(CHATML)([{"role": "user", "content": "x"}], tools=[tool])
    assert json.dumps(tool, ensure_ascii=False) in text


def test_the_date_is_given() -> None:
    assert ChatTemplate("{{ strftime_now('%Y') }}")([]) == time.strftime("%Y")


HARMFUL = {
    "attributes of Python": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals of a function": "{{ raise_exception.__globals__.keys() }}",
    "changes of the messages": "{{ messages.append(1) }}",
    "endless loops": "{% set x = range(99999) %}{% for a in x %}{% for b in x %}{% endfor %}{% endfor %}",
    "endless loops in a macro": "{% macro f(x) %}{% for a in x %}{% for b in x %}{% endfor %}{% endfor %}{% endmacro %}"
    "{{ f(range(99999)) }}",
    "loops that set what counts them": "{% set _budget = none %}{% set x = range(99999) %}"
    "{% for a in x %}{% for b in x %}{% endfor %}{% endfor %}",
    "endless calls": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "great ranges": "{% for a in range(10 ** 9) %}{% endfor %}",
    "great products": "{{ 'a' * 9999999999 }}",
    "great lists": "{{ [0] * 9999999999 }}",
    "great powers": "{{ 9 ** 9999999 }}",
    "growing text": "{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x * 2 %}"
    "{% endfor %}{{ ns.x }}",
    "wide formats": "{{ '%999999999d' % 1 }}",
    "wide padding": "{{ 'a'.ljust(999999999) }}",
    "wide filters": "{{ 'a' | center(999999999) }}",
    "wide fields": "{{ '{:999999999}'.format(1) }}",
    "products of lengths": "{% set x = 'a' * 999999 %}{{ x.replace('a', x) }}",
    "imports": "{% import 'os' as os %}{{ os }}",
    "includes": "{% include '/etc/passwd' %}",
}


@pytest.mark.parametrize("source", HARMFUL.values(), ids=HARMFUL.keys())
def test_harm_is_refused_soon(source: str) -> None:
    start = time.perf_counter()
    with pytest.raises(ValueError, match="chat template: "):
        ChatTemplate(source)([{"role": "user", "content": "x"}])
    assert time.perf_counter() - start < 30  # of no speed, only an end


def test_other_runs_are_not_charged_for_one() -> None:
    template = ChatTemplate("{% for i in range(90000) %}{% endfor %}done")
    for _ in range(15):
        assert template([]) == "done"


@pytest.mark.parametrize("source", ["{% for %}", "{{ a ", "{% endif %}", "{{ x | nothing }}"])
def test_bad_syntax_names_the_template(source: str) -> None:
    with pytest.raises(ValueError, match=r"chat template: "):
        ChatTemplate(source)([])


def test_messages_must_be_messages() -> None:
    template = ChatTemplate(CHATML)
    with pytest.raises(TypeError, match="list of mappings"):
        template("hello")  # type: ignore[arg-type] # what is tested
    with pytest.raises(TypeError, match="list of mappings"):
        template(["hello"])  # type: ignore[list-item] # what is tested
