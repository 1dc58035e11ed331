"""The stress test of resilient_optim: a small GPT whose text is turned round in mid-run."""
