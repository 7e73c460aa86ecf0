"""How well passages are found, and how good and how honest the answers are."""
