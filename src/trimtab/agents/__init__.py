"""Learning to control: agents, the policy network, meta-training, evaluation."""
