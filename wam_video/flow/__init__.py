"""The maths of flow matching on tensors: path, density over the noise square, the table of modes, losses, solvers.

Nothing here knows a network, a file or a device mesh: functions of tensors, with randomness passed in.
"""
