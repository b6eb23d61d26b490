"""Files that QGIS reads beside the data: styles, the form of a review, projects."""
