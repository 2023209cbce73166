"""Methods against memorization, this one and others, on the same model, prompts and noises."""
