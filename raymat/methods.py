"""The names of the matting methods, apart from the solvers, whose compiler takes half a second to import."""

METHODS = ("cf", "knn", "lb", "if", "cf+", "knn+", "lb+", "if+")
