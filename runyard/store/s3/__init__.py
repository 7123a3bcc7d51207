"""A bucket as an `ObjectStore`, by the library `minio`, which is imported nowhere else.

place.py        which bucket, at which address, by which region
credentials.py  who we are there, renewed ahead of the end
answers.py      the library's errors as ours, and which of them are worth another try
calls.py        the library's blocking calls, in threads, with retries
bucket.py       one request each
upload.py       objects of many parts
reading.py      an object's bytes, over cuts
signing.py      presigned URLs, for programs without credentials
store.py        `S3Store`, which is all of it together
"""
