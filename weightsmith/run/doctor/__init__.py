"""`weightsmith doctor`: what of this machine is broken, slow or missing, and what to do about it.

`software` looks at packages, `hardware` at processors, `places` at folders, disks and the hub; each gives `Check`s. What could
take this process down, a broken torchvision say, is imported in child processes alone.
"""

from weightsmith.run.doctor.command import doctor

__all__ = ["doctor"]
