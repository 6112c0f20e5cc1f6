"""Fast implementations of ops, a package for each kind of device; the references need none of them."""
