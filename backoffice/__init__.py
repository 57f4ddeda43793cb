"""The staff's and buyers' side of a sale: accounts, catalogue, sales and orders, a package per subject, on Robyn."""
