"""Language models behind HTTP, for clients of OpenAI's interface. See docs/serving.md.

From the outside in: ``launch`` starts Ray and waits, ``deployment`` and ``router`` are what Ray Serve runs, ``app`` is
HTTP, ``request`` and ``response`` are the interface's JSON, ``engine`` gives the sessions of one program turns.
Nothing but ``launch``, ``deployment`` and ``router`` knows of Ray.
"""
