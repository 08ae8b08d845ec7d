"""Mail storage: mailboxes and the protocols that read them."""
