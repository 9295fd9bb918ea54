"""What /sync answers: the difference between two points of everything one user follows.

A token is a stream position (every transaction below it has been seen) and the serial number of
the last typing change, which lives in memory only. Reading the same interval twice gives the
same answer, so a client that lost a response asks again and misses nothing.
"""
