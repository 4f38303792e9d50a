"""What a clinic measures on a nodule, from its mattes and its readers' masks: volume, diameters, mass, shape.

One subject per file, plain functions on arrays; ``nodule.py`` puts them together to the row of a nodule, and
``dictionary.py`` names every column with its unit and meaning.
"""
