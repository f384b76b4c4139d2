"""The models of `specs/`: searched by SPIN, refuted without their safeguards, and driven on the real library edge by edge."""
