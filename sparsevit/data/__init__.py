"""The built-in data set: handwritten digits on photographs, from what scikit-learn ships. Nothing is downloaded."""
