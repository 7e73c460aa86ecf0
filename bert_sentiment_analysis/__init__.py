"""Project 2: encoders fine-tuned on reviews and tweets, compared, explained and served."""
