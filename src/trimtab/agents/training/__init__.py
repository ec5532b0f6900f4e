"""Meta-training: how a policy that ships is learned."""
