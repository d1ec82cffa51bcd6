"""What the daemon costs, measured beside the plain tools that do the same, in one run on one machine.

Ratios travel between machines, absolute figures do not: so each module measures a peer next to the daemon, in turns,
and judges the ratio. These are measurements and no tests: a missed target is printed and fails nothing.
"""
