"""Who runs next: pure policies over the queue, the nodes and the quotas."""
