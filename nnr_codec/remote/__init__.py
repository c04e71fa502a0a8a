"""Files at addresses (https, s3, …): what is needed of them comes, once, and is kept locally.

:class:`.remote_file.RemoteFile` is the way in; `addresses` tells addresses from paths.
"""
