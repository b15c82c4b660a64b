"""Vision-language models as judges: they are shown a picture or two and a question, and what they answer is counted."""
