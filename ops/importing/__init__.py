"""`flashsale import`: reads files of products line by line and sends them to the backoffice in batches."""
