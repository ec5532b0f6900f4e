"""What a policy is worth on tasks that it was not trained on."""
