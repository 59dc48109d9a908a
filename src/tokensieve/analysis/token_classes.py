"""The four classes of tokens over training (Rho-1, section 2.1): the one list that tables, pages and terminals index.

dynamics/classes.py says which token is in which: H and L are a high and a low nll, before and after.
"""

CLASSES = ("H->H", "L->H", "H->L", "L->L")
