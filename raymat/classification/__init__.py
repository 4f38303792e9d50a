"""Benign or malignant: nodule classifiers and the inputs they are given (paper, section 6.1). No Ray."""
