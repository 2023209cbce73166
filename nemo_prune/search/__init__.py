"""The search for memorization neurons as pure logic: it asks, somebody else answers."""
