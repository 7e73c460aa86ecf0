"""Project 3: text generation with GPT-class models: decode, prompt, write, generate code, and measure it."""
