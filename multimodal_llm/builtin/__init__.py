"""The embedded models of this project, and the scenes and documents they learn from and are tested on."""
