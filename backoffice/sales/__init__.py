"""Flash sales: drafts, publishing, changes while they run, restocks, reports."""
