"""GenEval (arXiv 2310.11513) of photographs: prompts, a detector of objects, a namer of colours, and the rules."""
