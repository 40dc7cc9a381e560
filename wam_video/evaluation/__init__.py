"""Evidence: errors of every mode beside their controls, with honest intervals, on one page (`wam-video evaluate`)."""
