"""all-MiniLM-L6-v2, an encoder whose vectors say which sentences mean the same."""
