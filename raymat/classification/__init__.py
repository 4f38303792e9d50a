"""Benign or malignant: nodule classifiers and the fourteen inputs they are given (paper, section 6.1). No Ray."""
