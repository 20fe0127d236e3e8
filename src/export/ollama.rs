//! Ollama's Modelfile: the chat template in Go's template language, and the stop tokens.
