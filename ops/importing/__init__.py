"""`flashsale import`: files of products, read line by line and handed to the backoffice in batches."""
