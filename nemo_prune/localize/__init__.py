"""The job: from prompts to neurons, and on to the pruned file."""
