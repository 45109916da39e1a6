"""The page on which a person corrects a classifier. `Session` and `why` say what there is to see and do, without a page:
errors, reasons, previews, edits that are kept or undone. `page` shows it with Gradio, a thin layer; `server` serves it to
this machine alone.
"""
