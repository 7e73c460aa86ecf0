"""8-bit weights and activations: dynamic, static, and learned."""
