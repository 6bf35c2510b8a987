"""How a suite is made: candidates of sources, the choice by hash, needles, the folder."""
