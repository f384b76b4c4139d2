"""What the library costs on this machine: `python -m benchmarks [NAME ...]`.

Each figure of a durable run stands beside the floor of the same run, a 4 KiB write and fdatasync in the same directory.
Where that floor exceeds 1 ms, the disk or the scheduler is what is measured, and no ratio to it proves anything.
"""
