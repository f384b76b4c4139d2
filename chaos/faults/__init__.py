"""How faults are made: below Python in the C library's calls, in the bytes on the disk, in the thread that runs next."""
