"""From runs to texts: recordings of any length, live audio, language models for a run, confidences, noisy students."""
