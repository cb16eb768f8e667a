"""Where keys are kept. Stores hold records and decide nothing; they know nothing of HTTP.

Any object with the methods of ``KeyStore`` is a store; ``get`` alone is enough to authenticate.
"""
