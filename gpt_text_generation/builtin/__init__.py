"""The embedded models of this project, the texts they learn from, and the prompts that ship with it."""
