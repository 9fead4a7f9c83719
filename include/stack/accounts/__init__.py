"""The stack's accounts: users, credentials of services, and the file with secrets."""
