"""Register, harmonize and fuse the CT, MR and PET of one patient."""

__version__ = "0.1.0"
