"""The paper's language models: text, model, training task, perplexities, generation, presets."""
