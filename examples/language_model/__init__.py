"""A small Llama that has read Jane Austen's novels: its text, its tokenizer, its training and its checkpoint."""
