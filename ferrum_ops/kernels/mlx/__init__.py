"""The fused functions of MLX, where they do what the ops mean."""
