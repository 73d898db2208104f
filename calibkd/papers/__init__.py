"A module or a package a paper: its settings, its printed numbers, its own names; no paper imports another."
