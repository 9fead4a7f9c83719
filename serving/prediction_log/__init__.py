"""The prediction log: rows to Parquet files on a disk or an object store."""
